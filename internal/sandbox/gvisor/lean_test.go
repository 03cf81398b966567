package gvisor

import (
	"testing"

	"gvisor.dev/gvisor/pkg/sentry/seccheck"
)

// TestTracePointsAreLeftOut fails when gVisor has renamed what is reached into.
func TestTracePointsAreLeftOut(t *testing.T) {
	leaveOutTracePoints()
	seccheck.Initialize()
	if len(seccheck.Points) > 0 {
		t.Errorf("%d points were described", len(seccheck.Points))
	}
}
