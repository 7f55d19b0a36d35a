"""Where the images come from: class folders, a flat folder, tars, tars of class tars, or a list.

Each becomes one table with a row an image, so that image ``i`` is read at random from anywhere. The table's order
comes from sorted names, never from the file system.
"""

from preprocessing.sources.listing import list_source, root_of
from preprocessing.sources.summary import summary
from preprocessing.sources.table import Place, Source

__all__ = ["Place", "Source", "list_source", "root_of", "summary"]
