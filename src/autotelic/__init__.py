"""Post-training without reward labels, and exploration kept alive where labels exist.

Importing this package is cheap: everything heavy is imported by the module that needs it.
"""

__version__ = "0.1.0"
