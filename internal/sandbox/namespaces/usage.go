package namespaces

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// namespaceUsage adds up the processes in the PID namespace of init, for
// machines without cgroups. Memory that several share counts for each.
func namespaceUsage(init int) (sandbox.Usage, error) {
	var u sandbox.Usage
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		return u, sandbox.ErrGone
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return u, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != own {
			continue
		}
		fields, err := statFields(pid)
		if err != nil {
			continue // ended since it was listed
		}
		var numbers [3]int64 // user time, system time, resident pages
		for i, f := range [][]byte{fields[11], fields[12], fields[21]} {
			if numbers[i], err = strconv.ParseInt(string(f), 10, 64); err != nil {
				return u, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
			}
		}
		u.CPUTime += time.Duration(numbers[0]+numbers[1]) * clockTick
		u.MemoryBytes += numbers[2] * int64(os.Getpagesize())
	}
	return u, nil
}
