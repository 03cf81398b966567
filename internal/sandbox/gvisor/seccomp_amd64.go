package gvisor

import _ "embed"

//go:embed seccomp_amd64.json
var seccompPrograms []byte
