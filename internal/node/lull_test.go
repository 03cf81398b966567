package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestLull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lull
		waited := func(ctx context.Context) time.Duration {
			start := time.Now()
			l.await(ctx)
			return time.Since(start)
		}
		if d := waited(t.Context()); d != 0 {
			t.Errorf("waited %v although nobody has asked yet", d)
		}
		l.disturb()
		time.Sleep(lullLength / 3)
		if d := waited(t.Context()); d != lullLength*2/3 {
			t.Errorf("waited %v after one create", d)
		}
		l.disturb()
		time.AfterFunc(lullLength/2, l.disturb)
		if d := waited(t.Context()); d != lullLength*3/2 {
			t.Errorf("waited %v with another create in between", d)
		}

		l.disturb()
		busy, stop := context.WithCancel(t.Context())
		go func() {
			for busy.Err() == nil {
				l.disturb()
				select {
				case <-busy.Done():
				case <-time.After(lullLength / 2):
				}
			}
		}()
		if d := waited(t.Context()); d != lullPatience {
			t.Errorf("waited %v where somebody always asks", d)
		}
		stop()
		synctest.Wait()
		l.disturb()
		if d := waited(busy); d != 0 {
			t.Errorf("waited %v although the context had ended", d)
		}
	})
}
