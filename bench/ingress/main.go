// Command ingress measures the public URLs against nginx, HAProxy and Caddy from
// Debian: the same routing by Host, the same check of a header, the same
// upstream, on one machine and by turns. It prints tables of requests a second,
// of their ratio to nginx's, and of the processor time that a request costs.
//
// It needs nginx, which is the upstream too, and wrk. Others that are not
// installed are left out with a line that says so.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

func main() {
	serve := flag.String("serve", "", "be moat's ingress, with the files in this `directory`; the program starts itself so")
	known := flag.Int("known", 10, "with -serve: `sandboxes` that are known")
	logged := flag.Bool("log", false, "with -serve: keep the audit log, as the server does")
	plain := flag.String("plain", "", "with -serve: `address` without TLS")
	secure := flag.String("secure", "", "with -serve: `address` with TLS")
	each := flag.Duration("each", 2*time.Second, "how long each of three turns of a measurement takes")
	only := flag.String("only", "", "measure only the cells whose name contains this `text`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if *serve != "" {
		err = serveIngress(ctx, *serve, *plain, *secure, *known, *logged)
	} else {
		err = measure(ctx, *each, *only)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
