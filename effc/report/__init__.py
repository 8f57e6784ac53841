"""Reports for people: on the terminal (terminal.py, tables.py) and as one HTML file (page.py)."""
