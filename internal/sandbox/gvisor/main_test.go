package gvisor

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Dispatch()
	code := m.Run()
	if theLab.lab != nil {
		if err := theLab.lab.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
