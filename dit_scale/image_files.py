"""Which files are images, by their endings, and which formats are decoded, whatever a file's ending."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""Pillow's plain ones; its others may start programs (EPS) or need plugins."""
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})
