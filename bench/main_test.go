package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/moat-sandbox/moat/bench/load"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// The test binary runs itself again, with one of these in its environment:
// loads run in the network namespaces of sandboxes, resolvers on nodes.
const (
	loadJob     = "BENCH_LOAD"     // a load.Load as JSON
	resolverJob = "BENCH_RESOLVER" // where to listen
)

func TestMain(m *testing.M) {
	ctx := context.Background()
	var err error
	switch {
	case os.Getenv(loadJob) != "":
		err = runLoad(ctx, os.Getenv(loadJob))
	case os.Getenv(resolverJob) != "":
		err = runResolver(ctx, os.Getenv(resolverJob))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runLoad prints the outcome of a load.
func runLoad(ctx context.Context, text string) error {
	var l load.Load
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	o, err := l.Run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// source is a network namespace on a node that load comes from: a sandbox.
type source struct {
	node *lab.Node
	path string // of the namespace, as the node sees it
}

// prepare returns the command that makes a load.
func (s source) prepare(b *testing.B, l load.Load) *lab.Cmd {
	b.Helper()
	text, err := json.Marshal(l)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := s.node.Command(b.Context(), "nsenter", "--net="+s.path, self)
	cmd.Env = append(harness.CleanEnv(), loadJob+"="+string(text))
	return cmd
}

// run makes a load and waits for its outcome.
func (s source) run(b *testing.B, l load.Load) load.Outcome {
	b.Helper()
	out, err := s.prepare(b, l).Output()
	if err != nil {
		b.Fatal(err)
	}
	return outcome(b, out)
}

// outcome reads what runLoad has printed.
func outcome(b *testing.B, out []byte) (o load.Outcome) {
	b.Helper()
	if err := json.Unmarshal(bytes.TrimPrefix(out, []byte(load.Ready)), &o); err != nil {
		b.Fatalf("outcome %q: %v", out, err)
	}
	return o
}
