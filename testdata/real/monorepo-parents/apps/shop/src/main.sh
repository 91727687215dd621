#!/bin/sh
. lib/all.sh
log shop of "$(id -un)"
net open
