"""The training laboratory: models, data, our own loop, run folders, grids and the command line.

It uses the public page of the library, as anybody's code could.
"""
