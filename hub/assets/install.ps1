# Makes this machine a node of the Cortex Mesh hub that served this script:
# fetches cortex-peer for Windows, checks its SHA-256, writes its configuration, and starts it.
#
#   & ([scriptblock]::Create((irm '@HUB@/install.ps1'))) -Invite 'cxi1_...'
#
# The whole script is one block that is parsed before it runs: a download that was cut short runs nothing.
param(
    [string]$Invite = '',
    [string]$Name = '',
    [string]$Hub = '@HUB@',
    [string]$Dir = '',
    [switch]$NoStart
)
& {
    $ErrorActionPreference = 'Stop'
    Set-StrictMode -Version 2
    function Say([string]$Text) { Write-Host "cortex: $Text" }
    # A YAML string: only backslash and quote need care once line breaks are refused.
    function Quote([string]$Text) { '"' + $Text.Replace('\', '\\').Replace('"', '\"') + '"' }

    $Hub = $Hub.TrimEnd('/')
    if (-not $Dir) { $Dir = Join-Path $env:LOCALAPPDATA 'cortex-peer' }
    # .NET takes a relative path from where the process began, PowerShell from where the user is.
    $Dir = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Dir)
    $Config = Join-Path $Dir 'peer.yaml'
    $Program = Join-Path $Dir 'cortex-peer.exe'
    $File = 'cortex-peer-windows-x86_64.exe'
    if ($Invite -and $Invite -cnotmatch '\Acxi1_[A-Za-z0-9_-]+\z') { throw "this is not a whole invite: it begins with cxi1_; copy it again from $Hub/download" }
    if (-not $Invite -and -not (Test-Path -LiteralPath $Config)) { throw "an invite is needed: -Invite cxi1_... (get one at $Hub/download)" }
    if ($Name -match '[\x00-\x1f\x7f]') { throw 'a name has no line breaks or control characters' }

    # Windows PowerShell 5 would begin with TLS 1.0, and shows a progress bar that makes downloads many times slower.
    [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12
    $ProgressPreference = 'SilentlyContinue'

    New-Item -ItemType Directory -Force -Path $Dir | Out-Null
    $New = "$Program.new"
    try {
        Say "fetching $File from $Hub"
        $Sums = (Invoke-WebRequest -UseBasicParsing -Uri "$Hub/dist/SHA256SUMS").Content
        if ($Sums -is [byte[]]) { $Sums = [Text.Encoding]::ASCII.GetString($Sums) }
        $Found = [regex]::Match($Sums, '(?m)^([0-9a-f]{64})  ' + [regex]::Escape($File) + '\r?$')
        if (-not $Found.Success) { throw "this hub has no program for Windows" }
        $Wanted = $Found.Groups[1].Value
        Invoke-WebRequest -UseBasicParsing -Uri "$Hub/dist/$File" -OutFile $New
        $Got = (Get-FileHash -Algorithm SHA256 -LiteralPath $New).Hash.ToLowerInvariant()
        if ($Got -cne $Wanted) { throw "the download is damaged or was altered (SHA-256 $Got, expected $Wanted); nothing was installed" }
        Say "checksum is right: $Wanted"
        Move-Item -Force -LiteralPath $New -Destination $Program
    } finally {
        Remove-Item -Force -ErrorAction SilentlyContinue -LiteralPath $New
    }
    Say "installed $Program"

    if ($Invite) {
        if (Test-Path -LiteralPath $Config) {
            Move-Item -Force -LiteralPath $Config -Destination "$Config.old"
            Say "kept the previous configuration as $Config.old"
        }
        # Only this user may read it, before there is anything in it.
        New-Item -ItemType File -Path $Config | Out-Null
        & icacls.exe $Config /inheritance:r /grant:r "$([Security.Principal.WindowsIdentity]::GetCurrent().Name):F" | Out-Null
        if ($LASTEXITCODE -ne 0) { throw "cannot make $Config readable for you only" }
        $Lines = @('# Configuration of cortex-peer. The invite works once and is erased when the machine has joined.')
        if ($Name) { $Lines += 'name: ' + (Quote $Name) }
        $Lines += 'invite: ' + (Quote $Invite)
        [IO.File]::WriteAllText($Config, ($Lines -join "`n") + "`n")
        Say "wrote $Config (only you can read it)"
    }

    if ($NoStart) {
        Say "start it with: & '$Program' run --config '$Config'"
    } else {
        Say 'starting; Ctrl-C stops the peer'
        & $Program run --config $Config
    }
}
