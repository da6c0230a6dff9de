# Stop the web UI that tools\start_ui.ps1 started; jobs go on. Not tested: there is no Windows machine in this project's CI.
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..")
$data = if ($env:AI_TOOLKIT_DATA) { $env:AI_TOOLKIT_DATA } else { "data" }
$pidFile = Join-Path $data "web.pid"
if (-not (Test-Path $pidFile)) { Write-Output "not running"; exit 0 }
$process = Get-Process -Id (Get-Content $pidFile) -ErrorAction SilentlyContinue
if ($process -and $process.ProcessName -like "python*") { Stop-Process -Id $process.Id }
Remove-Item $pidFile
Write-Output "stopped"
