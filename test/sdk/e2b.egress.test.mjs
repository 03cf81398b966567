import * as sdk from 'e2b'
import { egress } from './egress.mjs'

egress('e2b', sdk)
