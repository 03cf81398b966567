package process

import (
	"fmt"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/guest/child"
)

func TestEndedProcessesAreForgotten(t *testing.T) {
	now := time.Now()
	s := &Service{config: Config{Retention: 30 * time.Second}}
	add := func(pid int, drained time.Time) {
		s.procs = append(s.procs, &proc{Child: &child.Child{PID: pid}, drained: drained})
	}
	pids := func() (all []int) {
		for _, p := range s.procs {
			all = append(all, p.PID)
		}
		return all
	}
	add(1, now.Add(-31*time.Second))
	add(2, time.Time{})
	add(3, now.Add(-29*time.Second))
	s.prune(now)
	if got := fmt.Sprint(pids()); got != "[2 3]" {
		t.Errorf("processes = %s, want [2 3]", got)
	}
	for pid := range 2 * maxEnded {
		add(1000+pid, now)
	}
	s.prune(now)
	if got := pids(); len(got) != maxEnded+1 || got[0] != 2 || got[len(got)-1] != 1000+2*maxEnded-1 || got[1] != 1000+maxEnded {
		t.Errorf("%d processes: %d, %d … %d", len(got), got[0], got[1], got[len(got)-1])
	}
}
