// Command moat-lab runs a command on the node of a laboratory (see
// internal/lab): a namespace whose only route leads to a fake internet. The
// command's exit status becomes its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/internal/lab"
)

const usage = `Usage: moat-lab [flags] [--] COMMAND [ARGUMENT...]

Runs COMMAND on a node whose only route leads to a fake internet. It ends with
COMMAND, and everything that COMMAND left running ends with it. Needs root.

COMMAND finds in its environment:
  LAB_CA      PEM file of the authority behind the internet's certificates
  LAB_DNS     address of a name server
  LAB_DOMAIN  a domain whose names, all of them, lead to the node
  LAB_CERT    PEM file of a certificate for that domain
  LAB_KEY     PEM file of its key

Flags:
`

// grace is how long COMMAND has to end after it was asked to.
const grace = 10 * time.Second

// files is where the node finds the lab's files; it exists only there.
const files = "/run/moat-lab"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	status, err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "moat-lab:", err)
	}
	os.Exit(status)
}

// run returns the exit status: that of the command, or 125 with an error when
// there was none.
func run(ctx context.Context, args []string, complaints io.Writer) (int, error) {
	const failed = 125
	flags := flag.NewFlagSet("moat-lab", flag.ContinueOnError)
	flags.SetOutput(complaints)
	flags.Usage = func() {
		fmt.Fprint(complaints, usage)
		flags.PrintDefaults()
	}
	records := flags.String("records", "", "master `file` of further names, see lab.Config")
	report := flags.Bool("report", false, "print at the end what the internet has seen")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0, nil
	case err != nil:
		return failed, nil // flags has said why
	case flags.NArg() == 0:
		return failed, errors.New("no command given; see moat-lab --help")
	}

	cfg := lab.Config{Log: slog.New(slog.NewTextHandler(complaints, nil))}
	if *records != "" {
		text, err := os.ReadFile(*records)
		if err != nil {
			return failed, err
		}
		cfg.Records = string(text)
	}
	l, err := lab.New(context.Background(), cfg) // a signal ends the command first
	if err != nil {
		return failed, err
	}
	status, err := command(ctx, l, flags.Args())
	if *report {
		printReport(complaints, l)
	}
	if err := errors.Join(err, l.Close()); err != nil {
		return failed, err
	}
	return status, nil
}

// command runs one command on the node and returns its exit status, shell
// fashion: 128 and the number for a signal.
func command(ctx context.Context, l *lab.Lab, args []string) (int, error) {
	env, err := writeFiles(l)
	if err != nil {
		return 0, err
	}
	cmd := l.Node.Command(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return 0, err // it never started
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) && ctx.Err() == nil {
		return 0, err
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// writeFiles puts the lab's certificates where the node can read them and
// returns the environment that says so.
func writeFiles(l *lab.Lab) ([]string, error) {
	cert, key, err := l.Certificate(lab.Domain, "*."+lab.Domain)
	if err != nil {
		return nil, err
	}
	if err := l.Node.Mkdir(files, 0o700); err != nil {
		return nil, err
	}
	env := []string{"LAB_DNS=" + lab.DNSServer, "LAB_DOMAIN=" + lab.Domain}
	for _, f := range []struct {
		variable, name string
		data           []byte
	}{
		{"LAB_CA", "ca.pem", l.CA()},
		{"LAB_CERT", "cert.pem", cert},
		{"LAB_KEY", "key.pem", key},
	} {
		file := path.Join(files, f.name)
		if err := l.Node.WriteFile(file, f.data, 0o600); err != nil {
			return nil, err
		}
		env = append(env, f.variable+"="+file)
	}
	return env, nil
}

// printReport lists what reached the internet, whoever sent it.
func printReport(w io.Writer, l *lab.Lab) {
	fmt.Fprintln(w, "moat-lab: the internet saw")
	for _, p := range l.Packets() {
		fmt.Fprintln(w, "  packet ", p)
	}
	for _, q := range l.Queries() {
		fmt.Fprintf(w, "  query   %s %s at %s\n", q.Type, q.Name, q.To)
	}
	for _, r := range l.Requests() {
		fmt.Fprintf(w, "  request %s %s%s at %s\n", r.Method, r.Host, r.Path, r.To)
	}
}
