"""Builds the engines of this bundle on the device that it is for, checks and measures them.

    python3 build_on_device.py            # build, compare with the recorded answers, measure: report.json
    python3 build_on_device.py --check    # anywhere: check the files, say what each JetPack will do
    python3 build_on_device.py --dry-run  # on the device: say what would be done

Needs Python 3.8 and TensorRT's Python module, or the program trtexec; nothing else.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the bundle holds what was built, and nothing else
    from on_device.main import main  # type: ignore[import-not-found]  # the folder beside this file

    sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
