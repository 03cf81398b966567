package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/bench/load"
	"github.com/moat-sandbox/moat/test/harness"
)

// BenchmarkManySandboxes compares the one sandbox of a server with the last of
// 200, each with a policy of 100 entries of its own: connections that the
// kernel forwards, and updates.
func BenchmarkManySandboxes(b *testing.B) {
	type last struct {
		server *harness.Server
		box    *harness.Box
		flows
		networks [2]*api.Network
	}
	var all []last
	for _, sandboxes := range []int{1, 200} {
		s := startMoat(b, "--team-limit", "1000", "--max-sandboxes", "1000")
		l := last{server: s}
		l.name, l.to = fmt.Sprintf("%d sandboxes", sandboxes), serverAddr
		for i := range sandboxes {
			for turn := range l.networks {
				own := fmt.Sprintf("61.%d.%d.0/24", turn, i)
				l.networks[turn] = denyAllBut(append(otherHosts(98), own, serverAddr)...)
			}
			l.box, l.from = sandbox(b, s, l.networks[0])
		}
		all = append(all, l)
	}
	b.Run("connections", func(b *testing.B) {
		compare(b, connections(b, []flows{all[0].flows, all[1].flows}, 16), rate("conn/s"), waited(0.5), waited(0.99))
	})
	b.Run("update", func(b *testing.B) {
		var contenders []contender
		for _, l := range all {
			turn := 0
			contenders = append(contenders, contender{l.name, 0, func() load.Outcome {
				turn = 1 - turn
				began := time.Now()
				put(b, l.server, l.box, l.networks[turn])
				took := time.Since(began)
				return load.Outcome{Count: 1, Took: took, Waited: []time.Duration{took}}
			}})
		}
		compare(b, contenders, waited(0.5))
	})
}
