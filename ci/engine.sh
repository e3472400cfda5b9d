#!/usr/bin/env bash
# A Docker Engine for tests and benchmarks, and the base root file systems that images are built on.
#
#   eval "$(ci/engine.sh start)"    the engine that answers at DOCKER_HOST, else one of our own on a private socket
#   ci/engine.sh restart            stops the daemon of the one of our own and starts it again, as an update of Docker does
#   ci/engine.sh stop               stops the one of our own, and removes what it kept
#
# Our own lives in FLOPS_ENGINE_DIR [TMPDIR/engine]; whoever names the same directory shares it. Two of them live side by side:
# each has its own bridge, run directory and containerd namespace. `start` prints what to export:
# DOCKER_HOST, FLOPS_DOCKER (Debian's client, which has BuildKit), FLOPS_BASE_ROOTFS (a directory with amd64.tar and arm64.tar).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${FLOPS_ENGINE_DIR:-${TMPDIR:-/tmp}/engine}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
id=$(printf %s "$dir" | sha256sum | cut -c1-8)
run=/run/flops-$id # short: paths of Unix sockets end at 108 bytes
bridge=flops-$id
socket=$run/docker.sock
cache=${FLOPS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flops-gitops}

say() { echo "engine: $*" >&2; }
answers() { [[ -x /usr/bin/docker ]] && DOCKER_HOST=$1 timeout 10 /usr/bin/docker version >/dev/null 2>&1; }

install_missing() {
  local missing=() tool
  declare -A package=([dockerd]=docker.io [iptables]=iptables [ip]=iproute2 [docker-registry]=docker-registry
    [skopeo]=skopeo [mmdebstrap]=mmdebstrap)
  for tool in "${!package[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
  done
  # A client that is first on the PATH may come from elsewhere; the tests need Debian's.
  [[ -x /usr/bin/docker ]] || missing+=(docker.io)
  if ((${#missing[@]})); then
    say "installing ${missing[*]}"
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  fi
}

# The subnet of our bridge, away from those of other engines here.
make_bridge() {
  ip link show "$bridge" >/dev/null 2>&1 && return
  local second third
  second=$((0x${id:0:2} % 64 + 128)) third=$((0x${id:2:2}))
  ip link add "$bridge" type bridge
  ip addr add "10.$second.$third.1/24" dev "$bridge"
  ip link set "$bridge" up
}

start_own() {
  mkdir -p "$run"
  make_bridge
  [[ -f $dir/daemon.json ]] || echo '{}' >"$dir/daemon.json"
  nohup setsid dockerd --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$run" --pidfile "$run/docker.pid" \
    --bridge "$bridge" --containerd-namespace "$bridge" --containerd-plugins-namespace "$bridge-plugins" \
    -H "unix://$socket" >"$dir/dockerd.log" 2>&1 9>&- </dev/null &
  local pid=$!
  for _ in {1..300}; do
    answers "unix://$socket" && return
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  say "dockerd did not start:"
  tail -20 "$dir/dockerd.log" >&2
  return 1
}

# Containers of arm64 run under QEMU where the kernel can be told so. Without it the tests of that skip, with a reason; nothing else
# needs it: images for arm64 are made without emulation.
emulation() {
  local misc=/proc/sys/fs/binfmt_misc conf=/usr/lib/binfmt.d/qemu-aarch64.conf
  [[ $(uname -m) == x86_64 ]] && grep -qw binfmt_misc /proc/filesystems || { say "no emulation: the kernel has no binfmt_misc"; return; }
  [[ -e $misc/register ]] || mount -t binfmt_misc binfmt_misc "$misc" || { say "no emulation: binfmt_misc cannot be mounted"; return; }
  [[ -e $misc/qemu-aarch64 ]] && return
  if [[ ! -f $conf ]]; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static >&2 ||
      { say "no emulation: qemu-user-static cannot be installed"; return; }
  fi
  # Flag F opens the interpreter now: containers have it without having its file.
  [[ -e $misc/qemu-aarch64 ]] || cat "$conf" >"$misc/register" || say "no emulation: the kernel does not take QEMU"
}

# Made once per machine; the recipe is in the name, so a change makes them anew.
base_rootfs() {
  local recipe folder arch
  recipe=$(sha256sum "$here/base_rootfs.sh" | cut -c1-12)
  folder=$cache/base-rootfs/$recipe
  mkdir -p "$folder"
  for arch in amd64 arm64; do
    if [[ ! -f $folder/$arch.tar ]]; then
      say "making the base root of $arch"
      "$here/base_rootfs.sh" "$arch" "$folder/$arch.tar" >&2
    fi
  done
  echo "$folder"
}

start() {
  exec 9>"$dir/start.lock"
  flock 9
  install_missing
  local host=${DOCKER_HOST:-unix:///var/run/docker.sock} rootfs
  if ! answers "$host"; then
    host=unix://$socket
    answers "$host" || start_own
  fi
  emulation
  rootfs=$(base_rootfs)
  printf 'export DOCKER_HOST=%q FLOPS_DOCKER=/usr/bin/docker FLOPS_BASE_ROOTFS=%q\n' "$host" "$rootfs"
}

halt() {
  if [[ -f $run/docker.pid ]]; then
    local pid
    pid=$(<"$run/docker.pid")
    kill "$pid" 2>/dev/null || true
    for _ in {1..150}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
  fi
}

stop() {
  halt
  ip link del "$bridge" 2>/dev/null || true
  # Mounts are left only by a daemon that was killed.
  awk -v data="$dir/" -v run="$run/" 'index($2, data) == 1 || index($2, run) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l
  rm -rf --one-file-system "$run" "$dir"
}

case ${1:-} in
  start) start ;;
  restart) halt && start_own ;;
  stop) stop ;;
  *) sed -n '2,10p' "$0" && exit 2 ;;
esac
