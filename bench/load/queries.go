package load

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

func (l Load) queries(ctx context.Context, w *worker) error {
	deadline, _ := ctx.Deadline()
	conn, err := net.Dial("udp", l.Target)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	packet, err := new(dns.Msg).SetQuestion(dns.Fqdn(l.Name), dns.TypeA).Pack()
	if err != nil {
		return err
	}
	answer := make([]byte, 1500)
	for w.begin(); w.more(); {
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
