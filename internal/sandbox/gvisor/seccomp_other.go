//go:build !amd64

package gvisor

// Other architectures compile their filters at every start.
var seccompPrograms []byte
