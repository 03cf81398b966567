package socket_test

import (
	"context"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

func TestManyDatagrams(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	sent := []string{"a", "bcd", "ef"}
	out := messages(3, func(i int) []byte { return []byte(sent[i]) })
	if n, err := socket.SendMany(pair[0], out); n != 3 || err != nil {
		t.Fatalf("sent %d: %v", n, err)
	}
	buffers := make([][]byte, 4)
	in := messages(4, func(i int) []byte { buffers[i] = make([]byte, 8); return buffers[i] })
	n, err := socket.ReceiveMany(pair[1], in, unix.MSG_DONTWAIT)
	if n != 3 || err != nil {
		t.Fatalf("received %d: %v", n, err)
	}
	var got []string
	for i := range n {
		got = append(got, string(buffers[i][:in[i].Length]))
	}
	if !slices.Equal(got, sent) {
		t.Errorf("received %q, want %q", got, sent)
	}
	if n, err := socket.ReceiveMany(pair[1], in, unix.MSG_DONTWAIT); n != 0 || err != unix.EAGAIN {
		t.Errorf("of nothing received %d: %v", n, err)
	}
}

func messages(count int, buffer func(int) []byte) []socket.Message {
	all := make([]socket.Message, count)
	for i := range all {
		b := buffer(i)
		span := &unix.Iovec{Base: &b[0]}
		span.SetLen(len(b))
		all[i].Iov = span
		all[i].SetIovlen(1)
	}
	return all
}

func TestAlarm(t *testing.T) {
	alarm, err := socket.NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close(int(alarm))
	readable := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(alarm), Events: unix.POLLIN}}, 0)
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		return n == 1
	}
	ctx, cancel := context.WithCancel(t.Context())
	alarm.Set(ctx)() // it is taken back
	stop := alarm.Set(ctx)
	if readable() {
		t.Error("it goes off before the context ends")
	}
	cancel()
	stop()
	if !readable() {
		t.Error("it did not go off")
	}
}
