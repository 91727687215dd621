import importlib.metadata
import importlib.resources
import subprocess
import sys


def main():
    title = importlib.resources.files("inventory").joinpath("title.txt").read_text().strip()
    print(title, importlib.metadata.version("inventory"))
    rows = subprocess.run(["sqlite3", sys.argv[1], "SELECT name, n FROM items ORDER BY n DESC"], check=True, capture_output=True, text=True)
    for row in rows.stdout.splitlines():
        name, n = row.split("|")
        print(f"{name:6}{n:>3}")
