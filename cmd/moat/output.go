package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
)

// addJSONFlag declares --json.
func (c *cli) addJSONFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON, with the API's field names")
	return cmd
}

// printJSON writes a value as the API would, indented.
func (c *cli) printJSON(v any) error {
	encoder := json.NewEncoder(c.stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// table lines up columns for people.
type table struct{ out *tabwriter.Writer }

func newTable(w io.Writer, header ...string) *table {
	t := &table{out: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

// row adds a line. An empty cell shows as a dash.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = first(printable(cell), "-")
	}
	fmt.Fprintln(t.out, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.out.Flush() }

// printable keeps text that others wrote from steering the reader's terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// pairs writes a map as sorted key=value words.
func pairs(m map[string]string) string {
	words := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		words = append(words, k+"="+m[k])
	}
	return strings.Join(words, " ")
}

// stamp writes a time for people, in UTC as everywhere in the API.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// megabytes writes a size in bytes for people.
func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
