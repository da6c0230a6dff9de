# Stop the web UI that tools\start_ui.ps1 started. Jobs that run go on; the next start finds them again.
# Untested: written after tools/stop_ui.sh, never run on Windows.
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..")

$data = if ($env:AI_TOOLKIT_DATA) { $env:AI_TOOLKIT_DATA } else { "data" }
$pidFile = Join-Path $data "web.pid"
if (-not (Test-Path $pidFile)) {
    "not running (no $pidFile)"
    exit 0
}
$number = Get-Content $pidFile
# A number may have been given to another program since.
$found = Get-CimInstance Win32_Process -Filter "ProcessId = $number" -ErrorAction SilentlyContinue
if (-not $found -or $found.CommandLine -notlike "*-m web*") {
    Remove-Item $pidFile
    "not running (process $number is gone)"
    exit 0
}
# Windows has no SIGTERM: the server is ended where it stands. Its database is one that survives that.
Stop-Process -Id $number -Force
Wait-Process -Id $number -Timeout 15 -ErrorAction SilentlyContinue
Remove-Item $pidFile
"stopped"
