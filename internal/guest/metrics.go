package guest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// sample is the daemon's view of the sandbox's resources.
type sample struct {
	TS          int64   `json:"ts"` // Unix seconds
	CPUCount    int     `json:"cpu_count"`
	CPUUsedPct  float64 `json:"cpu_used_pct"` // of all processors together
	MemTotalMiB int64   `json:"mem_total_mib"`
	MemUsedMiB  int64   `json:"mem_used_mib"`
	MemTotal    int64   `json:"mem_total"` // bytes, as all that follow
	MemUsed     int64   `json:"mem_used"`
	MemCache    int64   `json:"mem_cache"`
	DiskUsed    int64   `json:"disk_used"`
	DiskTotal   int64   `json:"disk_total"`
}

// metrics tells what the sandbox uses now.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	now, err := s.measure()
	if err != nil {
		s.config.Log.Error("metrics failed", "error", err)
		wire.WriteError(w, http.StatusInternalServerError, err.Error())
		return
	}
	wire.WriteJSON(w, http.StatusOK, now)
}

func (s *Server) measure() (sample, error) {
	m := sample{TS: time.Now().Unix(), CPUCount: runtime.NumCPU()}
	var err error
	if m.CPUUsedPct, err = s.load.percent(time.Now(), m.CPUCount); err != nil {
		return m, err
	}
	memory, err := memInfo()
	if err != nil {
		return m, err
	}
	m.MemTotal, m.MemCache = memory["MemTotal"], memory["Cached"]
	m.MemUsed = m.MemTotal - memory["MemAvailable"]
	m.MemTotalMiB, m.MemUsedMiB = m.MemTotal>>20, m.MemUsed>>20
	var disk syscall.Statfs_t
	if err := syscall.Statfs(s.config.Root, &disk); err != nil {
		return m, fmt.Errorf("measure disk: %w", err)
	}
	m.DiskTotal = int64(disk.Blocks) * disk.Bsize
	m.DiskUsed = int64(disk.Blocks-disk.Bfree) * disk.Bsize
	return m, nil
}

// memInfo reads /proc/meminfo, in bytes.
func memInfo() (map[string]int64, error) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("measure memory: %w", err)
	}
	info := make(map[string]int64)
	for line := range strings.Lines(string(content)) {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			if kib, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				info[name] = kib << 10
			}
		}
	}
	if info["MemTotal"] == 0 {
		return nil, errors.New("measure memory: /proc/meminfo has no MemTotal")
	}
	return info, nil
}

// load turns processor time into a percentage since the last reading.
type load struct {
	mu   sync.Mutex
	at   time.Time
	used time.Duration
	last float64
}

// minInterval is the least time over which load is averaged; readings that
// follow each other sooner get the same answer.
const minInterval = 500 * time.Millisecond

// clockTick is the unit of processor time in /proc, the same on all of Linux.
const clockTick = 10 * time.Millisecond

func newLoad() *load { return &load{at: time.Now()} }

func (l *load) percent(now time.Time, cpus int) (float64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	elapsed := now.Sub(l.at)
	if elapsed < minInterval {
		return l.last, nil
	}
	used, err := processorTime()
	if err != nil {
		return 0, err
	}
	share := float64(used-l.used) / float64(elapsed) / float64(cpus) * 100
	l.last = math.Round(100*min(max(share, 0), 100)) / 100
	l.at, l.used = now, used
	return l.last, nil
}

// processorTime adds up what all processes have used, including those they have
// waited for. /proc/stat would be simpler, but gVisor shows zeros there.
func processorTime() (time.Duration, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("measure load: %w", err)
	}
	var ticks int64
	for _, dir := range dirs {
		if _, err := strconv.Atoi(dir.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + dir.Name() + "/stat")
		if err != nil {
			continue // ended since
		}
		// The name, in parentheses, may hold anything; what follows is numbers.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		const utime, end = 11, 15 // utime, stime, cutime, cstime
		if len(fields) < end {
			continue
		}
		for _, field := range fields[utime:end] {
			n, err := strconv.ParseInt(string(field), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("measure load: %w", err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * clockTick, nil
}
