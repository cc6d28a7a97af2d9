"""The device's side of measuring: standard library only, Python 3.8 or newer.

These modules, `edgekd/errors.py`, `edgekd/cpus.py` and two empty `__init__.py` travel in one zip file to a device
(`deploy/pack.py`); here they run as child processes. numpy and a runtime are imported when a model is loaded, never
before.
"""
