package app

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
)

// instanceName tells installations on one machine apart: their namespaces,
// cgroups and interfaces carry it. It follows from the data directory, so that
// a restarted server finds its own.
func instanceName(dataDir string) string {
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	sum := sha256.Sum256([]byte(dataDir))
	return hex.EncodeToString(sum[:3])
}

// runDir holds what lives only as long as the machine is up. It is short,
// because socket addresses below it are limited to 107 bytes.
func runDir(instance string) string { return filepath.Join("/run/moat", instance) }
