"""`python -m dit_scale COMMAND`, as torchrun and srun start it."""

from dit_scale.cli import main

main()
