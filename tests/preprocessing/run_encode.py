"""`python -m tests.preprocessing.run_encode key.sub=value …`: an encode in a process of its own, to be killed."""

import sys

from dit_scale.config import EncodeConfig, load_config
from preprocessing.encode import encode

if __name__ == "__main__":
    encode(load_config(EncodeConfig, None, sys.argv[1:]))
