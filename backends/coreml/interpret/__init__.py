"""Interpreter of saved Core ML packages: the proof of the coreml backend where there is no Mac.

It shares no code with the converter, and none with coremltools but the protobuf classes.
"""

from effc.backends.coreml.interpret.interpreter import Interpreter

__all__ = ["Interpreter"]
