"""What runs on the device: Python 3.8, the standard library, and TensorRT's module or trtexec.

Nothing here may need a later Python (JetPack 5 brings 3.8), numpy, or effc: the bundle carries a copy.
"""
