#!/bin/sh
# The first and only process of a user-mode Linux: a router between two networks that treats packets as it is told.
# Reads netem's words (tc-netem(8)) by the line, and answers each.  tests/fix_netem.py starts it and speaks to it.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
stty -echo
insmod "$(find "/usr/lib/uml/modules/$(uname -r)" -name sch_netem.ko)"
for side in 0 1; do
  ip address add "198.18.$side.254/24" dev "vec$side"
  ip link set "vec$side" up
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo "router: ready"
while read -r words; do
  for side in 0 1; do
    # The words are several arguments.
    tc qdisc replace dev "vec$side" root netem $words
  done
  echo "router: $words"
done
