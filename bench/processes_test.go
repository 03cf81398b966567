package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// descendants lists the processes below one, which for a server are those of
// its boxes.
func descendants(b *testing.B, of int) []int {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	children := map[int][]int{}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // ended in between
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			b.Fatal(err)
		}
		parent, err := strconv.Atoi(string(fields[1]))
		if err != nil {
			b.Fatal(err)
		}
		children[parent] = append(children[parent], pid)
	}
	all := children[of]
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// cpu is the processor time that a process and all below it have used.
func cpu(b *testing.B, of int) (used time.Duration) {
	const group = 2 // CPUCLOCK_SCHED of all threads
	for _, pid := range append(descendants(b, of), of) {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|group), &t); err != nil {
			if errors.Is(err, unix.EINVAL) {
				continue // ended in between
			}
			b.Fatal(err)
		}
		used += time.Duration(t.Nano())
	}
	return used
}

// pss adds up the proportional set sizes of processes, in bytes. Those that run
// the code inside a box share one memory, which counts once.
func pss(b *testing.B, pids []int) (sum int64) {
	var counted []int
	for _, pid := range pids {
		if sharesMemory(pid, counted) {
			continue
		}
		size, err := readField(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended in between
		}
		if err != nil {
			b.Fatal(err)
		}
		counted = append(counted, pid)
		sum += size
	}
	return sum
}

func sharesMemory(pid int, others []int) bool {
	const vm = 1 // KCMP_VM
	for _, other := range others {
		order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(other), vm, 0, 0, 0)
		if errno == 0 && order == 0 {
			return true
		}
	}
	return false
}

// cpuOfEnded is the processor time of a process and of those below it that have
// ended.
func cpuOfEnded(b *testing.B, pid int) (used time.Duration) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	const firstTime, times = 11, 4 // of its own and of its children, in user mode and in the kernel
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	for _, field := range fields[firstTime : firstTime+times] {
		ticks, err := strconv.Atoi(string(field))
		if err != nil {
			b.Fatal(err)
		}
		used += time.Duration(ticks) * time.Second / 100 // USER_HZ, of every architecture here
	}
	return used
}

// available reads how much memory the machine has left, in bytes.
func available(b *testing.B) int64 {
	size, err := readField("/proc/meminfo", "MemAvailable:")
	if err != nil {
		b.Fatal(err)
	}
	return size
}

// readField finds "name: 123 kB" in a file and returns it in bytes.
func readField(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
