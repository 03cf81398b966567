package gvisor

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Dispatch()
	if task := os.Getenv(helperEnv); task != "" {
		if err := helper(task); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	if os.Getenv(unifiedEnv) != "" {
		if err := checkUnified(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if theLab.lab != nil {
		if err := theLab.lab.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
