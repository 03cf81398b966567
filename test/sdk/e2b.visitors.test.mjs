import * as sdk from 'e2b'
import { visitors } from './visitors.mjs'

visitors('e2b', sdk)
