#!/usr/bin/env python3
"""Runs every service of a directory and says how each ended."""
import json
import pathlib
import subprocess
import sys

services = {p.stem: json.loads(p.read_text()) for p in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
running = {name: subprocess.Popen(s["command"], stdout=subprocess.PIPE, text=True) for name, s in services.items()}
for name, p in running.items():
    out, _ = p.communicate()
    print(f"{name}: {out.strip()} ({p.returncode})")
