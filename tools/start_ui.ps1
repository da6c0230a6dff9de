# Start the web UI in the background and wait until it answers: tools\start_ui.ps1 [-HostAddress ADDRESS] [-Port PORT]
# Untested: written after tools/start_ui.sh, never run on Windows. Settings come from the environment, see docs/web.md.
# PID file and logs lie in $env:AI_TOOLKIT_DATA (default: data).
param([string]$HostAddress, [string]$Port)
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..")

function Get-Setting([string]$Name, [string]$Default) {
    $value = [Environment]::GetEnvironmentVariable($Name)
    if ($value) { $value } else { $Default }
}

$python = Get-Setting "AI_TOOLKIT_PYTHON" ".venv\Scripts\python.exe"
if (-not (Get-Command $python -ErrorAction SilentlyContinue)) {
    [Console]::Error.WriteLine("no Python at $python; make it with: py -m venv .venv, then install requirements.txt")
    exit 1
}
$data = Get-Setting "AI_TOOLKIT_DATA" "data"
if (-not $Port) { $Port = Get-Setting "AI_TOOLKIT_PORT" "8675" }
if (-not $HostAddress) { $HostAddress = Get-Setting "AI_TOOLKIT_HOST" "127.0.0.1" }
New-Item -ItemType Directory -Force $data | Out-Null
$pidFile = Join-Path $data "web.pid"
$log = Join-Path $data "web.log"

# A number left by a server that was killed may have been given to another program since.
function Test-Web([string]$Number) {
    $found = Get-CimInstance Win32_Process -Filter "ProcessId = $Number" -ErrorAction SilentlyContinue
    [bool]($found -and $found.CommandLine -like "*-m web*")
}
if ((Test-Path $pidFile) -and (Test-Web (Get-Content $pidFile))) {
    "already running as process $(Get-Content $pidFile)"
    exit 0
}

# Asked at the address it listens on; 0.0.0.0 and :: are reached at this machine's own.
$ask = switch ($HostAddress) { "0.0.0.0" { "127.0.0.1" } "::" { "[::1]" } default { $HostAddress } }
if ($ask -match ":" -and $ask -notmatch "^\[") { $ask = "[$ask]" }
# Else the answer of another server would be taken for this one's.
$probe = New-Object Net.Sockets.TcpClient
try { $probe.Connect($ask.Trim("[", "]"), [int]$Port) } catch { } finally { $taken = $probe.Connected; $probe.Dispose() }
if ($taken) {
    [Console]::Error.WriteLine("port $Port is in use by another program: stop it, or set AI_TOOLKIT_PORT")
    exit 1
}

$options = @{
    FilePath = $python; ArgumentList = @("-m", "web", "--host", $HostAddress, "--port", $Port)
    WindowStyle = "Hidden"; PassThru = $true; RedirectStandardOutput = "$log.out"; RedirectStandardError = $log
}
$server = Start-Process @options
$server.Id | Set-Content $pidFile

$address = "http://${ask}:$Port$(Get-Setting "AI_TOOLKIT_ROOT_PATH" '')"
foreach ($try in 1..120) {
    if ($server.HasExited) {
        Remove-Item $pidFile
        [Console]::Error.WriteLine("it ended at once; the end of ${log}:")
        Get-Content $log -Tail 20 | ForEach-Object { [Console]::Error.WriteLine($_) }
        exit 1
    }
    try {
        Invoke-WebRequest -UseBasicParsing -TimeoutSec 2 "$address/readyz" | Out-Null
        "$address/ (process $($server.Id), log $log)"
        exit 0
    } catch { Start-Sleep -Milliseconds 500 }
}
[Console]::Error.WriteLine("process $($server.Id) runs but does not answer on port $Port; see $log")
exit 1
