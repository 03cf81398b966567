package bench

import "testing"

// What this server aims for.
const (
	aimPooled    = 25.0  // ms from the request to the first output, a box waiting
	aimCold      = 120.0 // ms likewise, none waiting
	aimSustained = 25.0  // creates a second
	aimImageMiB  = 12.0  // for one more idle sandbox made from an image
	aimBaseMiB   = 18.0  // for one more idle sandbox of the base template
)

// What others publish for themselves, measured on other machines and by other
// definitions: ms for a create, and MiB for an idle sandbox.
const (
	cubeCreate, cubeMiB = 48.0, 21.0
	e2bCreate           = 150.0
)

// reportRatio adds how a measurement compares with a figure: below 1 is less.
func reportRatio(b *testing.B, measured, figure float64, name string) {
	b.ReportMetric(measured/figure, name)
}
