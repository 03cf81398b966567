package load

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

func (l Load) queries(ctx context.Context, w *worker) error {
	deadline, _ := ctx.Deadline()
	targets := strings.Fields(l.Target)
	conn, err := net.Dial("udp", targets[w.number%len(targets)])
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	own := strings.Contains(l.Name, "%d")
	packet, err := query(l.Name)
	if err != nil {
		return err
	}
	answer := make([]byte, 1500)
	for w.begin(); w.more(); {
		if own {
			if packet, err = query(named(l.Name, w.number<<20|w.turns)); err != nil {
				return err
			}
		}
		began := time.Now()
		if _, err := conn.Write(packet); err != nil {
			return err
		}
		n, err := conn.Read(answer)
		if err != nil {
			return fmt.Errorf("after %d answers: %w", w.count, err)
		}
		w.done(time.Since(began), int64(n))
		const answers = 7 // the low byte of their number, in the header
		if n < 12 || answer[answers] == 0 {
			return fmt.Errorf("no address for %s in % x", l.Name, answer[:n])
		}
	}
	return nil
}

// named puts a number into a name that has room for one.
func named(name string, number int) string {
	return strings.Replace(name, "%d", fmt.Sprint(number), 1)
}

func query(name string) ([]byte, error) {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA).Pack()
}
