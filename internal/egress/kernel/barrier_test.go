package kernel

import (
	"testing"
)

// A barrier works again and again, and there is one also without the device
// that the fast one needs.
func TestBarrier(t *testing.T) {
	b, err := openBarrier()
	if err != nil {
		t.Fatalf("this machine has no fast barrier: %v", err)
	}
	for range 100 {
		if err := b.detachAndAttach(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
	slow := &barrier{}
	slow.wait()
	if err := slow.close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkBarrier(b *testing.B) {
	fast, err := openBarrier()
	if err != nil {
		b.Fatal(err)
	}
	defer fast.close()
	for name, barrier := range map[string]*barrier{"fast": fast, "slow": {}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				barrier.wait()
			}
		})
	}
}
