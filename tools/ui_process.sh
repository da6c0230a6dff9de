# For start_ui.sh and stop_ui.sh, which read it: whether a process is a server of ours.

# A number left by a server that was killed may have been given to another program since.
runs_web() {
    kill -0 "$1" 2>/dev/null || return 1
    [ ! -d /proc/self ] || tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -q -- "-m web"
}
