"""The device's side of measuring: standard library only, Python 3.8 or newer.

These modules, and those of the package that `bench/pack.py` names, travel in one zip file to a device; here they run
as child processes. numpy and a runtime are imported when a model is loaded, never before.
"""
