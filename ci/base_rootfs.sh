#!/usr/bin/env bash
# usage: ci/base_rootfs.sh ARCH OUT.tar – Debian 12 with Python 3.11 for amd64 or arm64, from Debian's packages alone.
# No maintainer script runs, so another architecture needs no emulation; what those scripts would have made is made by hooks.
set -euo pipefail
arch=$1 out=$2
export SOURCE_DATE_EPOCH=1704067200
mmdebstrap --quiet --format=tar --architectures="$arch" --variant=extract \
  --include=python3-minimal,python3.11-minimal,libpython3.11-stdlib,libc-bin,base-files,base-passwd,dash,coreutils,media-types,netbase,libgcc-s1,libstdc++6,ca-certificates \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --extract-hook='cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"; cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"' \
  --extract-hook='find "$1/usr/share/ca-certificates/mozilla" -name "*.crt" -print0 | sort -z | xargs -0 cat > "$1/etc/ssl/certs/ca-certificates.crt"' \
  --extract-hook='mkdir -p "$1/tmp" "$1/proc" "$1/sys" "$1/dev" "$1/run"; chmod 1777 "$1/tmp"' \
  --extract-hook='test -e "$1/bin/sh" || ln -s dash "$1/bin/sh"' \
  --extract-hook='/sbin/ldconfig -r "$1" 2>/dev/null || true' \
  --extract-hook='rm -rf "$1/usr/lib/"*/gconv "$1/var/lib/apt" "$1/var/cache/apt" "$1/usr/lib/"*/perl-base' \
  --extract-hook='printf "passwd: files\ngroup: files\nhosts: files dns\n" > "$1/etc/nsswitch.conf"' \
  bookworm "$out.part"
mv "$out.part" "$out"
