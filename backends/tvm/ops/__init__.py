"""Operators of the TVM backend: importing `effc.backends.tvm.ops.all` registers every rule and kernel."""
