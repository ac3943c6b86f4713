#!/bin/sh
# Works for ever, in a child of its own: the whole tree is stopped with it.
every=${2:-5}
number=0
trap 'echo "finishing number $number"; exit 0' TERM
while :; do
    number=$((number + 1))
    echo "working on number $number"
    sleep "$every" &
    wait $!
done
