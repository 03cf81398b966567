package bench

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/moat-sandbox/moat/bench/load"
)

// contender is one of those that are compared.
type contender struct {
	name   string
	server int // process whose processor time counts, with all below it; 0 is none
	round  func() load.Outcome
}

// turn is what came of one round.
type turn struct {
	load.Outcome
	cpu time.Duration // of the server
}

func (c contender) turn(b *testing.B) turn {
	if c.server == 0 {
		return turn{Outcome: c.round()}
	}
	before := cpu(b, c.server)
	o := c.round()
	return turn{o, cpu(b, c.server) - before}
}

// measure is what is read from a contender's rounds.
type measure struct {
	unit string
	of   func(turn) float64
}

func rate(unit string) measure { return measure{unit, turn.Rate} }

func speed() measure { return measure{"MB/s", turn.Speed} }

// cost is the server's processor time for each, in microseconds.
func cost() measure {
	return measure{"µs-cpu", func(t turn) float64 { return float64(t.cpu.Nanoseconds()) / 1000 / float64(t.Count) }}
}

// waited is how long a share of all waited, in milliseconds.
func waited(share float64) measure {
	return measure{fmt.Sprintf("p%.0f-ms", share*100), func(t turn) float64 {
		return float64(t.Quantile(share).Microseconds()) / 1000
	}}
}

// compare lets all contenders run one short round after the other, so that
// whatever else the machine does meets all of them. It prints the median of
// each measure, and in parentheses the median of its ratio to what the first
// contender's round came to at the same time.
func compare(b *testing.B, all []contender, measures ...measure) {
	b.Helper()
	if len(all) == 0 {
		b.Fatal("nobody to compare")
	}
	values := make([][][]float64, len(measures)) // by measure and contender, one for each round
	for i := range values {
		values[i] = make([][]float64, len(all))
	}
	for first := 0; b.Loop(); first++ { // who comes first changes
		for next := range all {
			c := (first + next) % len(all)
			t := all[c].turn(b)
			for i, m := range measures {
				values[i][c] = append(values[i][c], m.of(t))
			}
		}
	}
	b.ReportMetric(0, "ns/op") // a round's time says nothing
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "\n%s, medians of %d rounds (ratio to %s)\t", b.Name(), len(values[0][0]), all[0].name)
	for _, m := range measures {
		fmt.Fprintf(table, "%s\t\t", m.unit)
	}
	fmt.Fprintln(table)
	for c := range all {
		fmt.Fprintf(table, "%s\t", all[c].name)
		for i, m := range measures {
			value, ratio := median(values[i][c]), median(ratios(values[i][c], values[i][0]))
			fmt.Fprintf(table, "%.4g\t(%.2f)\t", value, ratio)
			b.ReportMetric(value, metric(all[c].name, m.unit))
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		b.Error(err)
	}
}

// metric is a name without spaces.
func metric(name, unit string) string { return strings.ReplaceAll(name+"-"+unit, " ", "-") }

func ratios(of, to []float64) []float64 {
	all := make([]float64, len(of))
	for i := range all {
		all[i] = of[i] / to[i]
	}
	return all
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
