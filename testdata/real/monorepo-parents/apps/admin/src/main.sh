#!/bin/sh
. lib/all.sh
log admin
