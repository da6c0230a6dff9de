# Start the web UI in the background: tools\start_ui.ps1. Not tested: there is no Windows machine in this project's CI.
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..")
$python = if ($env:AI_TOOLKIT_PYTHON) { $env:AI_TOOLKIT_PYTHON } else { ".venv\Scripts\python.exe" }
$data = if ($env:AI_TOOLKIT_DATA) { $env:AI_TOOLKIT_DATA } else { "data" }
$port = if ($env:AI_TOOLKIT_PORT) { $env:AI_TOOLKIT_PORT } else { "8675" }
New-Item -ItemType Directory -Force $data | Out-Null
$pidFile = Join-Path $data "web.pid"
if ((Test-Path $pidFile) -and (Get-Process -Id (Get-Content $pidFile) -ErrorAction SilentlyContinue)) {
    Write-Output "already running as process $(Get-Content $pidFile)"
    exit 0
}
$process = Start-Process $python -ArgumentList "-m", "web" -PassThru -WindowStyle Hidden `
    -RedirectStandardError (Join-Path $data "web.log") -RedirectStandardOutput (Join-Path $data "web.out.log")
$process.Id | Set-Content $pidFile
foreach ($try in 1..120) {
    if ($process.HasExited) { Get-Content (Join-Path $data "web.log") -Tail 20; exit 1 }
    try {
        Invoke-WebRequest -UseBasicParsing -TimeoutSec 2 "http://127.0.0.1:$port$($env:AI_TOOLKIT_ROOT_PATH)/readyz" | Out-Null
        Write-Output "http://127.0.0.1:$port$($env:AI_TOOLKIT_ROOT_PATH)/ (process $($process.Id))"
        exit 0
    } catch { Start-Sleep -Milliseconds 500 }
}
Write-Error "it runs but does not answer on port $port"
