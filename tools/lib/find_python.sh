# sets `system` to a Python of 3.11 or later, or ends the script that sources this
system=
for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        system=$candidate && break
    fi
done
if [ -z "$system" ]; then
    echo 'effc: error: Python 3.11 or later is needed (Debian and Ubuntu: apt install python3 python3-venv)' >&2
    exit 2
fi
