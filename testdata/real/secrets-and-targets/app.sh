#!/bin/sh
echo "flavor: $(cat flavor)"
echo "packages: $(tr '\n' ' ' < packages)"
