"""Microcontrollers as devices: firmware around generated C, emulated boards, boards behind a serial port.

    code generator -> Sources -> build_firmware -> firmware.elf -> QemuDevice | SerialDevice

`Sources` (sources.py) is all that this package knows of the code generator.
"""
