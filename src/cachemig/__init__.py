"""cachemig moves a JSONB cache column out of a live Postgres table into Redis, and proves that nothing was lost.

Importing the package loads neither Typer nor NumPy, nor opens a connection.
"""

__version__ = "0.1.0"
